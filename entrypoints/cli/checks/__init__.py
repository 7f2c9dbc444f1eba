"""What `registrar doctor` looks at. It only looks: nothing is made, started or changed, and no mail is sent."""
