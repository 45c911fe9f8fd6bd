"""Import of ROS bags and MCAP files into the folder format, without ROS."""
